"""Verification: certificates, attacks and exact methods as steps of one cascade over the examples of a set."""
