"""The only code that reads an identity: tokens, domains, sealed identities and objects."""
