"""The processes of a job that train one model together: who they are, what they tell each other, and who is lost."""

from trainbox.comm.communicator import Communicator, join
from trainbox.comm.members import Members, find_members

__all__ = ["Communicator", "Members", "find_members", "join"]
