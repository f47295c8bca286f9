"""The same search for SageMaker, as text: code for SDK v2 and v3, and boto3's CreateHyperParameterTuningJob."""
