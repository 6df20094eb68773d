"""Rate limits: at most so many units in any 60 seconds, in the memory of one process or shared through Redis."""
