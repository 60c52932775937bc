"""python -m raftmft"""

from raftmft.cli.main import main

main()
