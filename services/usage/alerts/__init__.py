"""Alerts: what they say, when they are due, and how they are sent."""
