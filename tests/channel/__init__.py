"""The direct channel: consumers in this and in other processes, a provider in the test's own trio run, or in a tree."""
