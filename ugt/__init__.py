"""The ground floor: what the recommender is. Imports no Ray; heavy libraries load where they are used."""
