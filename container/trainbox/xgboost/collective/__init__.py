"""XGBoost's collective among the processes of a job, and the tracker that introduces them to each other."""
