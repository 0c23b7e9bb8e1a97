"""The rooms: one family of algorithms each, rule, state, alias and paper together."""
