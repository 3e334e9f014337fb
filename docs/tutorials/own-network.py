"""To be written."""

# %% [markdown]
# # Your own network through a hypernetwork
