"""What a competent person would write without this package."""
