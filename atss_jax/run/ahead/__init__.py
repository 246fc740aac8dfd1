"""What XLA's compilers say of a recipe on TPUs and GPUs that are not here; nothing is run.

`topology` names the devices, `programs` what is compiled for them. `hlo_text` reads the compiled
program, `costs` and `figures` count in it, `report` is text for people.
"""
