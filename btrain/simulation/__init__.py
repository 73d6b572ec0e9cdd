"""Many peers in one process: seeded packets on one heap, virtual time, faults; no event loop, no wall clock."""
