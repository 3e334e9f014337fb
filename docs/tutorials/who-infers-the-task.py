"""To be written."""

# %% [markdown]
# # Who infers the task
