"""`fedrecon demo`: the main job from ratings to recommendations, with the commands that anybody would use."""
