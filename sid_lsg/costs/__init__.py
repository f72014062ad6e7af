"""What a run costs, counted and not timed: FLOPs, and bytes on each device."""
