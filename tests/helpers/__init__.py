"""What several tests share: networks, data, reference values, and ways to run and to compare. No test lives here."""
