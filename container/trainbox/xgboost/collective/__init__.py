"""XGBoost's collective among the processes of a job, and its tracker."""
