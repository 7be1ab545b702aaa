"""Adapters, one for each host. An adapter is the only code that knows its host, which it imports inside functions."""
