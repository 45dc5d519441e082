"""`inspect`: training examples as the model sees them, token by token, before a model is paid for."""
