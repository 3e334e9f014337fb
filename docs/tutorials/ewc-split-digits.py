"""To be written."""

# %% [markdown]
# # EWC on split digits
