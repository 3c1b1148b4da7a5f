"""How clients that people already use are told about a Modelyard server, and made to forget it."""
