"""Multiple choice by likelihood: the task and its reader."""
