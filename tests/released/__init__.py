"""Models that released packages hold, data of their kind, and what two quantizers make of them."""
