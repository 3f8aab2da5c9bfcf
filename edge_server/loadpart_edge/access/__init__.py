"""Who may use the server: clients with their rights, and the credentials by which they are known."""
