"""Floor 1, pure: what SageMaker gives a training container and what it takes back."""
