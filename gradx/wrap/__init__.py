"""The rooms of transformations that wrap others: when they act, what they see, what they keep."""
