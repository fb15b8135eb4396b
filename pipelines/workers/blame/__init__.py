"""Why a worker was lost: which image, or which GPU."""
