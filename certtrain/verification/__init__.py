"""Verification: certificates, attacks and exact methods as steps of one cascade over a set's points."""
