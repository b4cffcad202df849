"""The supervisor's parts without a mount."""
