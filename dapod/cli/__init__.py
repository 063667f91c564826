"""The command `dapod`: what people type; the services never import it."""
