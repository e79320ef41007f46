"""The verification competition (VNN-COMP): its lists of instances, its answers, its results, and running a list.

Nothing here loads torch; an instance is decided in a process of its own.
"""
