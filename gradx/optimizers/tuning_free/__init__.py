"""Methods that find the learning rate by themselves."""
