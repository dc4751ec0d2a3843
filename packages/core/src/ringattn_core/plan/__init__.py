"""What is computed where and when, as plain data: tiles, layouts, routes and the planner. No torch."""
