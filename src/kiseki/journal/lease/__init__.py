"""Who may write: a lease in a witness region, for a service with two sites of which one writes. Used by `service/`."""
