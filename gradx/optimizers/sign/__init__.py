"""Methods in which every element moves by the same length."""
