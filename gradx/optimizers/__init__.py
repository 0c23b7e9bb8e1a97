"""One file an algorithm, or close family: rule, state, alias and paper together.

The folders are families. A family imports what is below `optimizers`, and `first_order`, whose Adam
and RMSProp others are made of; never another family.
"""
