"""Results of machines that nobody trusts: read as data, so that whoever owns such a machine can't run code here."""
