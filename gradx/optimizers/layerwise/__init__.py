"""Methods that give each leaf a step in proportion to its norm."""
