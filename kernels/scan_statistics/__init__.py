"""Statistics of Mamba's implicit attention: definition, implementations and public operator."""
