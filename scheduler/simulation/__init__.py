"""Discrete-event simulation of batching policies: loads, executors, goodput.

The events run in csrc/simulation. Here are the scenarios, the search for a goodput and the reports.
"""
