"""What each variant costs in quality and brings in speed, measured on the real engine."""
