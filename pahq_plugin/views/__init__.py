"""Results as other people's values: HTML for notebooks, pandas, networkx, and two results compared."""
