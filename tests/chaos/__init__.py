"""A random killer of providers and consumers under mixed load: `python -m chaos --seconds 30`.

The seed decides who is killed and when, in terms of exchanges done; the same seed makes the same decisions.  What a
consumer may see of a kill is what `promises` tells of its path and its container's policy, and nothing else.  After it
nothing is left: no consumer, no descriptor, no entry in a state area, no process, no mount.
"""
