"""Looking at a unified model: summary, report, explanations, graph export, health check."""
