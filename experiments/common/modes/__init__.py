"""Parts of gaussian_mixture: classes of points in the plane."""
