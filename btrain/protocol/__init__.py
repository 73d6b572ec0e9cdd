"""The round as pure state machines: messages and `now` in, effects out. No I/O, no clock, no randomness of its own."""
