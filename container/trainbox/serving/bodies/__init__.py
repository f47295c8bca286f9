"""Bodies of requests and answers: bytes to rows by the model card, predictions to bytes."""
