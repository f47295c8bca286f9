"""An endpoint of many models (`SAGEMAKER_MULTI_MODEL`): SageMaker loads, asks and unloads them while it runs.

All models live in the one loader, and the workers are forks of it: hundreds of small models cost their own memory once,
whatever the number of workers, and each worker answers for all of them.

1. A worker gets `POST /models` and passes it on to the loader, through a socket that all of them share (`exchange`).
2. The loader looks at the files (`loading`), and whether there is memory for them (`room`). It forks a **trial**, a
   process that loads the model, answers the rows of its card, and ends: what hangs, crashes or takes all memory ends
   the trial, and is an answer 400, 500 or 507; nothing else notices (`trial`).
3. After a trial that went well the loader loads the model itself (`models_loader`).
4. It has the supervisor fork successors of all workers, which have the model. When they are ready the others give their
   idle connections back, with whatever has come of a request meanwhile, and end once they have answered what they were
   at: also a request for a model that was unloaded since. Then the load is answered with 200.

Loads and unloads that meet share one such change. A worker that dies is forked again with all models. Which ones are
loaded is also kept in memory that outlives the loader (`store`): one that dies loads them again, without the one that
it was loading when it died. The code of models is kept apart by namespaces (`hooks.namespace`), not by processes.

Source of the contract: https://docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html; the texts of answers
are those of https://github.com/awslabs/multi-model-server.
"""
