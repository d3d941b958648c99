"""Step environments of other libraries: a state that actions change, with rewards on the way. One file each."""
