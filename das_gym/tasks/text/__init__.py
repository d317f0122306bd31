"""Language modelling: the task, its readers, its windows."""
