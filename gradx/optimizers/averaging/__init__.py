"""Methods that average the iterates instead of letting the learning rate fall."""
